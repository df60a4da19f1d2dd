"""Texts from models that predict tokens: what is chosen at each step, and what is kept between steps."""
