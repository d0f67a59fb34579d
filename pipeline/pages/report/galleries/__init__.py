"""Sections of the report that show pictures: attention, captions, retrieval, grounding, codes."""
