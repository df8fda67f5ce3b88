"""Supervised fine-tuning: conversations, chat templates, loss masks, packing."""
