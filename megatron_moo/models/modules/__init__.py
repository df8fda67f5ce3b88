"""Modules that Megatron-Core's local spec lacks; they serve CPU and GPUs without Transformer Engine."""
