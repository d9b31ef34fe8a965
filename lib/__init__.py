"""Tools that know nothing of this homework: none imports one of its four files."""
