"""What makes notebooks a course: claims that fail when they are wrong, explorers, exercises that check themselves."""

__all__ = ["claims", "exercises", "explorers", "margins"]
