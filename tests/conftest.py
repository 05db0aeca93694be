"""What holds for every test."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")
"""How long one example takes says how busy the machine is, not whether the code is right."""
