"""A student in other tools' formats: `command` dispatches, every other module writes one of
them."""
