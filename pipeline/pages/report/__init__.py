"""One page about a run: `page` conducts, every other module draws one thing of it."""
