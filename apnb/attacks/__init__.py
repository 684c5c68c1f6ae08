"""Attacks: functions of a model, images and labels that return images."""
