"""Grafana dashboards as code, their rules, and the verifier that runs every query of them."""
