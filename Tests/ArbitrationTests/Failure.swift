import Arbitration

/// What `work` throws; nil if it succeeds.
func failure(_ work: () throws -> Void) -> ArbitrationError? {
  do {
    try work()
    return nil
  } catch { return error as? ArbitrationError ?? ArbitrationError(.failed, "another error: \(error)") }
}
