// @ai-sdk/deepseek: whole and streamed answers, a forced call, usage, an error.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, model, modules] = process.argv.slice(2);
const from = createRequire(`${modules}/`);
const load = async (name) => import(pathToFileURL(from.resolve(name)));
const [{ createDeepSeek }, { generateText, streamText, tool }, { z }] = await Promise.all(
  ["@ai-sdk/deepseek", "ai", "zod"].map(load),
);

const here = createDeepSeek({ baseURL: `${url}/v1`, apiKey: "none" })(model);
const common = { model: here, prompt: "Hello", maxOutputTokens: 200, maxRetries: 0 };

const whole = await generateText(common);
assert(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
assert(whole.text || whole.reasoningText);

const streamed = streamText(common);
const kinds = new Set();
for await (const part of streamed.fullStream) {
  assert.notEqual(part.type, "error", String(part.error));
  kinds.add(part.type);
}
assert(kinds.has("finish"));
assert((await streamed.usage).outputTokens > 0);

const weather = tool({ description: "The weather.", inputSchema: z.object({ city: z.enum(["Rome", "Paris"]) }) });
let called;
for (let tries = 0; tries < 20; tries++) {
  called = await generateText({ ...common, tools: { weather }, toolChoice: "required" });
  if (called.finishReason !== "length") break;
}
assert.equal(called.toolCalls[0].toolName, "weather");
assert(["Rome", "Paris"].includes(called.toolCalls[0].input.city));

const nobody = createDeepSeek({ baseURL: `${url}/v1`, apiKey: "none" })("nobody");
await assert.rejects(generateText({ ...common, model: nobody }), /is not served here/);
