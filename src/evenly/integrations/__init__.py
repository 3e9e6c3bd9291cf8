"""Methods inside other people's training loops."""
