import Model

/// Notices a peer whose link lives, but which acknowledges nothing: its disk hangs. Pure; looked at every now and then.
public struct StallWatch: Sendable {
  private var session: SessionID?
  private var oldest: UInt64?
  private var since = Instant(nanoseconds: 0)

  public init() {}

  /// `oldest`: the oldest number of the session that is not acknowledged, nil = none. Answers for how long it has been the
  /// same one, as far as this watch has seen.
  public mutating func look(_ session: SessionID, oldest: UInt64?, now: Instant) -> Duration {
    if self.session != session || self.oldest != oldest || oldest == nil {
      self.session = session
      self.oldest = oldest
      since = now
    }
    return now - since
  }
}
