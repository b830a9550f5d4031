//! Entering namespaces, on threads made for it.
