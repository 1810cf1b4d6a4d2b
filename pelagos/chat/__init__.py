"""Messages to tokens and back: the tokenizer, the official prompts, the official reading of a model's answer.

``tokenizer`` text and ids · ``effort`` words for how hard to think · ``render`` messages -> ids · ``parse`` ids ->
reasoning, content, tool calls · ``adapter`` the only user of deepseek-recipe. Import what you need from these modules.
"""
