"""The two ways of this package to refuse: a bad artifact, or a bad call."""


class ArtifactError(Exception):
    """The artifact cannot be written, read or trusted. One line: what was found, what was wanted, what to do."""


class LaunchError(Exception):
    """A call does not fit the artifact. One line: what was given, what the artifact takes, what to do."""
