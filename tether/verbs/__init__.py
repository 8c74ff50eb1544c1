"""What one side may ask of the other, as values, and their place in the schema."""
