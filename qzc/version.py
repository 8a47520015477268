"""The version of the package. The wheel takes its version from here."""

VERSION = "0.1.0"
