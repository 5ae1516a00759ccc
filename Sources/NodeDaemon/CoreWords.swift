import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig

/// The core's guest states in the API's coarser words.
func guestWord(_ guest: CoreGuest) -> ControlAPI.GuestState {
  switch guest {
  case .running, .starting, .stopping: .running
  case .paused, .suspended: .paused
  case .off: .off
  case .unknown: .unknown
  }
}

func arbiterPolicy(_ arbiter: Arbiter) -> ArbiterPolicy {
  switch arbiter {
  case .policyNone: .none
  case .policyPing: .ping
  case .wait: .wait
  case .witness: .witness
  case .fence: .fence
  case .witnessAndFence: .witnessAndFence
  }
}

func severityWord(_ severity: CoreSeverity) -> ControlAPI.Severity {
  switch severity {
  case .info: .info
  case .notice: .notice
  case .warning: .warning
  case .alarm: .error
  }
}

/// What an instant of this boot was on the wall clock, as far as the clocks were not set since.
func wallTime(of instant: Instant) -> WallTime {
  WallTime.now() + (instant - monotonicNow())
}
