"""The same model behind other servers: installed, started, checked, measured beside ours, and stopped, by one
command."""
