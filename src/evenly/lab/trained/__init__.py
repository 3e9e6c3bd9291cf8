"""What a trained run is good for: predictions on new data, and export."""
