"""What every layer may use: errors, time, files, life cycle, metrics. No network, no third-party services."""
