"""Real corpora from package registries: what `megatron-moo data prepare` offers."""
