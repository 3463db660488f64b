"""Attacks on what a site releases, and what their success proves."""

from tacit_simulations.attacks.one_run import epsilon_lower_bound, p_value, right_guesses

__all__ = ["epsilon_lower_bound", "p_value", "right_guesses"]
