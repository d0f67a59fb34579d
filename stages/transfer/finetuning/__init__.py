"""Finetunes a student on a downstream task, predicts and scores."""
