"""Parts of the fusion that compute only what is needed."""
