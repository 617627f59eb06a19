"""The chat for other programs: an OpenAI-compatible endpoint, and a chat that lives behind one."""
