"""What every layer may use: errors, time, life cycle, metrics. No I/O, no third-party services."""
