"""DeepSeek-V4: configs, modules, state, checkpoints. Module and tensor names are those of the official checkpoints."""
