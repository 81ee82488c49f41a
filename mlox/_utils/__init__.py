"""Helpers of all rooms: types, trees, descriptions of values, checks of fields."""
