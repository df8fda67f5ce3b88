"""What a trained model can do: loss per language, aligned cloze, samples; and runs compared over paired seeds."""
