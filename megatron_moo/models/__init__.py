"""Model families on Megatron-Core's GPT, and the few modules that its local spec lacks."""
