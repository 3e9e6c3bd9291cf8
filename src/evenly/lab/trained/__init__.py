"""Uses of a trained run: predictions on new data, and export."""
