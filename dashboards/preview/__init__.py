"""Pictures of the boards, drawn with Grafana's own components from a live run. Not part of CI."""
