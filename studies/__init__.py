"""Studies made with the product."""
