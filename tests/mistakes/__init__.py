"""Typical wrong answers as a reader would write them: MISTAKES[exercise][part of the message] = code for the stub."""
