"""Trains and scores the Faster R-CNN (`boxless teach`)."""
