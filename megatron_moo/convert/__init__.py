"""Hugging Face checkpoints in and out, tensor by tensor, without a GPU and without torchrun."""
