"""Trains the Faster R-CNN (`boxless teach`)."""
