"""Control plane for fleets of Solana MEV bots."""

__version__ = "0.1.0"
