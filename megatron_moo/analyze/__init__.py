"""What a model's layers know of languages: how separable, how aligned, and which dimensions one language owns."""
