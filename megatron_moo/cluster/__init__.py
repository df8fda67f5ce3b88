"""What a recipe needs of a cluster before a GPU is asked for: memory of a rank, bytes on the wire, time of a step."""
