"""The server: the APIs of OpenAI, Anthropic and DeepSeek over one engine, and the folder of the chat page.

A request's way: ``app`` routes, ``limits`` reads, a protocol's file (``chat``, ``messages``, ``responses``,
``completions``) makes engine requests of it, ``bridge`` carries them to the engine's thread and its events back,
``respond`` sends what the protocol's answer makes of them. Import what you need from these modules.
"""
