"""One run: settings, model and method, the training loop, evaluation, and what is kept."""
