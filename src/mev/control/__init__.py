"""Orders: signed, delivered, answered. A command is done when the fleet says so, agent by agent."""
