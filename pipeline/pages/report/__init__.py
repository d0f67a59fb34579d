"""One page about a run: `page` assembles it, every other module draws one section."""
