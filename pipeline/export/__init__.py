"""A student in other tools' formats: `command` conducts, every other module writes one of them."""
