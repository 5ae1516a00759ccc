import Model

extension MirrorModule {
  /// The session in which this node is the source of a resync that is not over: it has a turn, or waits for one, as long as this stays
  /// (`ResyncTurns`). What is handed out is only when the engine hears of `startResync`: to this core a late engine and one that waits
  /// for its turn are the same.
  public var sourceSession: SessionID? { phase == .alone ? resyncSession : nil }
}
