"""Where passes run. An engine places models and turns batches into outputs."""
