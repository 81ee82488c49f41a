"""Estimators: gradients of smaller variance, as optax transformations."""

from mlox.estimators._page import page as page
from mlox.estimators._storm import storm as storm
