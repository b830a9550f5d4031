//! A slim kubelet: follows the pods bound to this node, restarts, reports status, serves logs and streams
