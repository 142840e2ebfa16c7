"""Building, publishing and searching galleries: reader -> decode -> encode -> write -> publish."""
